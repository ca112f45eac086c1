"""Use a trained network: load, predict, evaluate, compare, explain, describe."""
