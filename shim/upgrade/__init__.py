"""Going on as other code in the same process: what is carried over, in which form, and the way back."""
