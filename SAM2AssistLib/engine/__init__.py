"""The engine: which models there are, how they are loaded and verified, and how prompts become masks.

Nothing heavy is imported here, so that the command line answers at once and Slicer starts without torch.
"""
