"""Write a text about a text: pairs of texts, training with generation in evaluation, scores of texts."""
