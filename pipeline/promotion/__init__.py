"""From a candidate to the champion: comparison, rules, evidence, and a move that only one wins."""
