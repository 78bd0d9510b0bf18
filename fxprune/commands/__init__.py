"""What the commands of `fxprune` do: one small file a command, and what several of them share."""
