"""The IPython face: magics made from the commands, completion, and what the kernel holds."""
