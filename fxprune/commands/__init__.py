"""What the commands of `fxprune` do: one small file a command; torch is loaded when one needs it."""
