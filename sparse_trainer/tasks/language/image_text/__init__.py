"""What an image-text model is worth: accuracy on choices, and agreement of its own answers with those of people."""
