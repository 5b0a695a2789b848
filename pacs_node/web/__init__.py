"""The page and the API: who asks, what they may see, and the facts in words. The role is `web`."""
