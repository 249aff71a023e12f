"""Train a small teacher; see scripts.teacher.make_teacher."""

from scripts.teacher.make_teacher import main

if __name__ == "__main__":
    main()
