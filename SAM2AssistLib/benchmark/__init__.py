"""How fast the engine is: against SAM2's own predictor, with equal weights and prompts, in the same run.

`scene` has something to segment, `upstream` drives ``SAM2VideoPredictor``, `timing` lets both work by turns,
`footprint` measures memory and start-up in processes of their own, and `machine` tells what it was measured on.
"""
