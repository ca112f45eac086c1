"""How every data module loads: what a batch holds is a function of seed, epoch and position alone."""
