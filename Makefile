.PHONY: check docs
check:
	ruff format --check
	ruff check
	mypy
	pytest

docs:
	sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
