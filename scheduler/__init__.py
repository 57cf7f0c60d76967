"""Needs, the node table, the decision; the extender service and the CLI around them."""
