"""The classifier and the bundle it is saved as. Imports nothing of ours; no Ray, no HTTP."""
