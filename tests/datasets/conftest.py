from support.moody import moody as moody
