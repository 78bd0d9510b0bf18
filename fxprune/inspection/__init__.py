"""What of a model can be pruned, before anything is: groups of units, pins, costs, as a table and a picture."""
