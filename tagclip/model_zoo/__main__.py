"""Print the names of all configs: ``python -m tagclip.model_zoo``."""

from tagclip import model_zoo

if __name__ == "__main__":
    print(*model_zoo.list(), sep="\n")
