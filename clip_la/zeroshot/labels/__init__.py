"""Classes, their names and prompts, and what a label in a file stands for."""
