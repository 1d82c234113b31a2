"""Coverage-guided fuzzing of one target: python fuzz.py TARGET SECONDS FOLDER.

FOLDER holds the corpus, which grows, and what crashed. Exit code 0 when nothing was found.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hil", "targets"]):
    import targets

LONGEST_INPUT, SLOWEST_S, MOST_MIB = 65536, 20, 3000


def main() -> None:
    name, seconds, folder = sys.argv[1:4]
    corpus = Path(folder) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-timeout={SLOWEST_S}"]
    options += [f"-rss_limit_mb={MOST_MIB}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], targets.TARGETS.get(name, targets.planted))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
