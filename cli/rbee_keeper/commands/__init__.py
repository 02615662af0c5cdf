"""The commands of rbee-keeper, one module per group; each is imported only when it is asked for."""
