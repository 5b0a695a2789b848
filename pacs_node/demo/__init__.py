"""`make demo`: a node, a receiving PACS and real images, in a minute."""
