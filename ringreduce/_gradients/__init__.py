"""The gradients of an optimizer over many ranks: how they are reduced, and what keeps the ranks in step."""
