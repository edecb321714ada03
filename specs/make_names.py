"""Make up names: make_names.py COUNT SEED FILE. The same seed gives the same names."""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

FIRST = [
    "Ada", "Alan", "Amara", "Ana", "Anders", "Aoife", "Blaise", "Carl", "Chen", "Chiara", "Dana", "Edsger",
    "Elif", "Emmy", "Erwin", "Fatima", "Grace", "Hana", "Hedy", "Ines", "Ivan", "Joan", "João", "Kai",
    "Katherine", "Lars", "Leila", "Lise", "Mae", "Maryam", "Max", "Mina", "Nadia", "Niels", "Noor", "Omar",
    "Radia", "Rosalind", "Søren", "Yuki"
]
LAST = [
    "Abadi", "Andersen", "Bauer", "Berg", "Brown", "Castro", "Cohen", "D'Angelo", "Diaz", "Dubois", "Evans",
    "Fischer", "Fontaine", "Garcia", "Hansen", "Haddad", "Ito", "Jansen", "Kaya", "Keller", "Khan", "Kovač",
    "Larsen", "Lee", "Lindqvist", "Lopez", "Meyer", "Moreau", "Nguyen", "Novak", "O'Brien", "Okafor", "Petrov",
    "Rossi", "Sato", "Silva", "Smith-Jones", "Tanaka", "Wang", "Weiß"
]


def main() -> None:
    """Write the file: two columns, each combination of names as likely as any other."""
    count, seed, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    generator = random.Random(seed)  # noqa: S311 - nothing is secret here
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((generator.choice(FIRST), generator.choice(LAST)) for _ in range(count))


if __name__ == "__main__":
    main()
