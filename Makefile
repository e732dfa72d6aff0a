.PHONY: check
check:
	ruff format --check
	ruff check
	mypy
	pytest
