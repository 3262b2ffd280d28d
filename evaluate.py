"""Score the weights of a run: python evaluate.py run=PATH [images=FOLDER] [key=value ...]."""

from et.commands import evaluate

if __name__ == "__main__":
    evaluate()
