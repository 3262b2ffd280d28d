"""Train, test and record one experiment: python train.py experiment=NAME [key=value ...].

python train.py --from-run PATH [key=value ...] runs a recorded run again and compares the metrics.
"""

from et.commands import train

if __name__ == "__main__":
    train()
