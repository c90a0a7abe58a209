"""Where the density is: the start, tempered runs, climbs, modes, and whether it is a density at all."""
