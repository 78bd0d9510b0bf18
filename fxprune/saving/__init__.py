"""Converted models in files: the plan, the tensors, and their digest."""
