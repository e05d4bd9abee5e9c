"""Replace personal values by tokens, and put them back."""
