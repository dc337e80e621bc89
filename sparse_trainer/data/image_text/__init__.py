"""Images with text: rows of local files, and what a model's processor makes of them."""

from sparse_trainer.data.image_text.batches import image_text_batches

__all__ = ["image_text_batches"]
