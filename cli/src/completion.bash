# Completions of flowctl for bash. They ask flowctl itself.
_flowctl() {
    local words=() index=0 joined=0 i word
    # readline breaks words at = and : too; flowctl does not.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i > 0)) && [[ $joined == 1 || $word == [=:]* ]]; then
            words[index]+=$word
        else
            words+=("$word")
            index=$((${#words[@]} - 1))
        fi
        [[ $word == [=:]* ]] && joined=1 || joined=0
    done
    # Readline replaces only what follows the last break.
    local typed=${words[index]} prefix=
    [[ $typed == *[=:]* ]] && prefix=${typed%"${typed##*[=:]}"}
    local IFS=$'\013'
    COMPREPLY=($(_CLAP_IFS=$IFS _CLAP_COMPLETE_INDEX=$index COMPLETE=bash flowctl -- "${words[@]}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    # A key wants its value: no space after it.
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o bashdefault -F _flowctl flowctl
