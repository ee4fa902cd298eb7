#compdef flowctl
# Completions of flowctl for zsh. They ask flowctl itself.
_flowctl_values() {
    local -a lines assignments others
    lines=("${(@f)$(_CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((CURRENT - 1)) COMPLETE=zsh flowctl -- "${words[@]}" 2>/dev/null)}")
    # A key wants its value: no space after it.
    assignments=(${(M)lines:#*=(|:*)})
    others=(${lines:#*=(|:*)})
    (($#assignments)) && _describe -V value assignments -S ''
    (($#others)) && _describe -V value others
}
# Found in fpath, this file is the body of the function that zsh calls; sourced, it is not.
if [[ $funcstack[1] == _flowctl ]]; then
    compdef _flowctl_values flowctl
    _flowctl_values "$@"
else
    compdef _flowctl_values flowctl
fi
