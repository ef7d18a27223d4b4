"""a scan and its labels -> a page in the browser. May import jobs and what stands below.

scene.py         which files belong together: scan, labels, uncertainty, report
label_files.py   one or two label files -> the same numbers, volumes, Dice, difference
content.py       scene -> what the page asks for: facts and files
thumbnail.py     scene -> a small picture for the list
marks.py         what a reader said of each scan, kept as CSV
server.py        the page, on this computer alone
one_file.py      the page as one HTML file with all in it
page/, niivue/   the page itself; the library that draws, as it comes from npm
"""
