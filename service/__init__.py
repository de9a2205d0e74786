"""HTTP in front of the model, on Ray Serve. Imports model; nothing imports service."""
