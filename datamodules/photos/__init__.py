"""Photos: find -> decode -> scan -> split -> folder, and what serves them to a network. Up to folder without torch."""
