"""What the programs are made of: each module is one room with one job. Nothing here imports a program."""
