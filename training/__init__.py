"""Images and labels to weights and a card."""
