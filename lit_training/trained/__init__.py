"""What can be done with a trained network: load, predict, evaluate, compare, explain, describe."""
