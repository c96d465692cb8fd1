"""What a wheel requires, without its extras: for one that asks for something that breaks it.

python requirements_of.py WHEEL [--without torch]   (names that begin so are left out)
"""

import argparse
import zipfile

_FIELD = "Requires-Dist: "


def requirements(wheel, without):
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(metadata).decode().split("\n\n", 1)[0].splitlines()
    wanted = (line.removeprefix(_FIELD) for line in lines if line.startswith(_FIELD))
    return [one for one in wanted if "extra ==" not in one and not one.startswith(without)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel")
    parser.add_argument("--without", nargs="*", default=[])
    given = parser.parse_args()
    print("\n".join(requirements(given.wheel, tuple(given.without))))
