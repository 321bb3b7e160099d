"""What the samples of the settings say: which settings each program has, and which it cannot do without."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]

# By their names in the programs.
EXIT_CODES = {
    name: int(code)
    for name, code in re.findall(
        r"pub const (\w+): u8 = (\d+);", (ROOT / "crates/common/src/exit.rs").read_text()
    )
}

# From flags of the AWS SDK and of libpq, which the samples name or which every AWS tool reads.
ELSEWHERE = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


def sample(program):
    return (ROOT / program / "env.sample").read_text()


def known(program):
    """Every setting of the program, also those that are commented out."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", sample(program), re.MULTILINE)) | ELSEWHERE


def required(program):
    """What must be set: the sample's own lines, the database apart, which has two ways."""
    return set(re.findall(r"^([A-Z][A-Z0-9_]+)=", sample(program), re.MULTILINE)) - {"DATABASE_URL"}
