"""The storm: containers at work while random processes of ours are killed, and a count of what became of them."""
