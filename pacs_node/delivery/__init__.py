"""What leaves the node: which objects go where, in which order, and what becomes of them. The role is `courier`."""
