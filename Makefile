# Two commands do everything: `make run` and `make test`. Both prepare .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# two processes of one thread each: most tests are too small to keep two threads busy
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 900 --nbval-sanitize-with tests/nbval_sanitize.cfg

.PHONY: setup run test test-library test-notebooks lab bench book notebooks lint clean

setup: $(STAMP)

# from pinned versions (constraints.txt); made again only when what it installs from has changed
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	@echo "preparing .venv from constraints.txt: some minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -q --constraint constraints.txt --editable '.[notebooks,test]'
	@touch $@

run: setup  ## the main job: train, quantise, matte the sample clip; tables and pictures
	@cd notebooks && MPLBACKEND=agg ../$(BIN)/ipython --no-banner --no-confirm-exit --colors=nocolor 04_first_light.ipynb

test: test-library test-notebooks

test-library: setup
	$(PYTEST)

test-notebooks: setup
	I2I_PRESET=$${I2I_PRESET:-smoke} $(PYTEST) $(NBVAL) notebooks

lab: setup  ## JupyterLab
	cd notebooks && ../$(BIN)/jupyter lab

bench: setup  ## the library against its peers, in the same run
	@for script in benchmarks/[!_]*.py; do $(BIN)/python $$script || exit 1; done

book: setup  ## the notebooks as one folder of web pages
	$(BIN)/jupyter nbconvert --to html --output-dir figures/book notebooks/*.ipynb

notebooks: setup  ## execute every notebook in place, to commit it with its figures
	cd notebooks && for n in *.ipynb; do ../$(BIN)/jupyter nbconvert --to notebook --execute --inplace $$n || exit 1; done

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv data/cache runs figures/first_light figures/book
