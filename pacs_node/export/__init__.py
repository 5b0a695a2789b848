"""The way back to training: what readers said, with de-identified images. Ends in `reviews`."""
