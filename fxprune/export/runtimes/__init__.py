"""Which runtimes can networks be timed on? One small file each; the registry has their names."""
