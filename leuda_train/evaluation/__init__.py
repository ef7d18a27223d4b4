"""labels + truth -> Dice and distances. May import data and networks."""
