"""What all figures share."""

# Colour-blind safe (Okabe and Ito); line styles or markers tell lines apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
