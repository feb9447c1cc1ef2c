"""A pair becomes its ΔW, dense or as its factors, and the sums over its entries."""
