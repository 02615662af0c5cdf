"""rbee-keeper: the command line program that configures nodes and runs test inferences."""
