#!/bin/sh
# Checks the documents against the rules of prose in CONTRIBUTING.md. Takes the files to check; without any it checks
# README, CHANGELOG, CONTRIBUTING and the book. Prints FILE:LINE: WHAT for each finding, and fails if there is one.
set -eu

if [ $# -eq 0 ]; then
    cd "$(dirname "$0")/.."
    # The figures are written by `make bench-docs`.
    # shellcheck disable=SC2046 # no name has a space
    set -- README.md CHANGELOG.md CONTRIBUTING.md $(find docs/src -name '*.md' ! -name figures.md | sort)
fi

# In the C locale every awk takes bytes for characters: `width` counts only those that begin a UTF-8 character.
check() { # FILE
    LC_ALL=C awk '
BEGIN {
    max_width = 100; max_words = 25; max_lines = 5; max_cell = 15

    # Each is looked for as whole words, in any case.
    split("leave away|leaves away|left away|as it says|has come|have come|had come|by itself|by themselves|" \
        "is no valid|is no image name|is no source|who must not|who may|whoever|is spared|are spared|for nothing|" \
        "it need not|goes with|goes when|one behind the other", forbidden, "|")
}

function report(line, what) {
    print FILENAME ":" line ": " what
    found = 1
}

# The number of characters, without the targets of links.
function width(text) {
    gsub(/\]\([^)]*\)/, "]()", text)
    gsub(/<https?:[^>]*>/, "", text)
    gsub(/[\200-\277]/, "", text)
    return length(text)
}

# The text as it is read: code is one word, a link is its text, and markup is gone.
function plain(text) {
    gsub(/`+[^`]*`+/, "CODE", text)
    gsub(/!\[[^]]*\]\([^)]*\)/, "", text)
    gsub(/\]\([^)]*\)/, "]", text)
    gsub(/<[^>]*>/, "", text)
    gsub(/[][*]/, "", text)
    return text
}

# The number of words: what has no letter and no digit is punctuation.
function words(text,    parts, count, i, n) {
    n = split(text, parts, /[ \t]+/)
    for (i = 1; i <= n; i++)
        if (parts[i] ~ /[A-Za-z0-9\200-\377]/)
            count++
    return count + 0
}

# Other people and programs may say what they like: quoted text is left out.
function phrases(text, line,    i) {
    gsub(/"[^"]*"/, "", text)
    text = " " tolower(text) " "
    gsub(/[^a-z0-9\200-\377-]+/, " ", text)
    for (i in forbidden)
        if (index(text, " " forbidden[i] " "))
            report(line, "\"" forbidden[i] "\": say it in other words")
}

function end_sentence() {
    if (count > max_words)
        report(sentence, "a sentence of " count " words (at most " max_words "): " beginning " ...")
    if (semicolons > 1)
        report(sentence, "a sentence with " semicolons " semicolons: " beginning " ...")
    if (beginning ~ /^(Who|What|Whoever|Whatever) / && last ~ /[.!:;]$/)
        report(sentence, "a sentence that begins with a clause in place of a subject: " beginning " ...")
    count = semicolons = 0
    beginning = ""
}

function end_paragraph(    parts, n, i, word, line) {
    if (!lines)
        return
    if (lines > max_lines)
        report(start, "a paragraph of " lines " lines (at most " max_lines ")")
    # Numbers of lines are words of their own, so that a sentence knows where it begins.
    text = plain(text)
    n = split(text, parts, /[ \t]+/)
    line = start
    for (i = 1; i <= n; i++) {
        word = parts[i]
        if (word ~ /^\002/) {
            line = substr(word, 2)
            continue
        }
        if (word ~ /[A-Za-z0-9\200-\377]/) {
            if (!count++)
                sentence = line
            if (count <= 4)
                beginning = beginning (count > 1 ? " " : "") word
        }
        last = word
        if (word ~ /;$/)
            semicolons++
        # An abbreviation ends no sentence.
        if (word ~ /[.!?][")'"'"']*$/ && word !~ /^(\(?e\.g\.|\(?i\.e\.|vs\.|\.\.\.)$/)
            end_sentence()
    }
    end_sentence()
    gsub(/\002[0-9]+/, "", text)
    phrases(text, start)
    lines = 0
    text = ""
}

function cells(row,    parts, n, i, count) {
    gsub(/\\\|/, "/", row)
    row = plain(row)
    n = split(row, parts, "|")
    for (i = 2; i < n; i++)
        if ((count = words(parts[i])) > max_cell)
            report(FNR, "a cell of " count " words (at most " max_cell ")")
    phrases(row, FNR)
}

/^[ \t>]*(```|~~~)/ { end_paragraph(); in_code = !in_code; next }
in_code { next }
/^[ \t>]*$/ { end_paragraph(); next }
/^[ \t]*\|/ { end_paragraph(); cells($0); next }
/^[ \t]*(\[[^]]*\]: |<|\{\{)/ { end_paragraph(); next }

width($0) > max_width { report(FNR, "a line of " width($0) " characters (at most " max_width ")") }

/^#/ { end_paragraph(); phrases(plain($0), FNR); next }
/^[ \t>]*([-*+]|[0-9]+[.)]) / { end_paragraph(); sub(/^[ \t>]*([-*+]|[0-9]+[.)]) +/, "") }

{
    sub(/^[ \t>]+/, "")
    if (!lines++)
        start = FNR
    text = text " \002" FNR " " $0
}

END { end_paragraph(); exit found }
' "$1"
}

rc=0
for file in "$@"; do
    check "$file" || rc=1
done
exit "$rc"
