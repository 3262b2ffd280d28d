"""Complete photographs: python complete.py PHOTO_OR_FOLDER ... [--mask random|block|MASK.png] [--fit crop|tile]."""

from et.inpainting.complete import main

if __name__ == "__main__":
    raise SystemExit(main())
