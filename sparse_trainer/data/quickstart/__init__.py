"""What a first run needs without a hub: packaged weights and a question set written on the spot."""
