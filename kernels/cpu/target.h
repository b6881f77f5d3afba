// Compiles a region of one file for more than the baseline processor. Only the functions between
// BEGIN and END may run the extra instructions, so headers must be included before BEGIN: an inline
// function of theirs compiled inside could be chosen by the linker for the baseline code too.
#pragma once

#define LS_PRAGMA_(x) _Pragma(#x)
#if defined(__clang__)
#define LS_TARGET_BEGIN(features) \
  LS_PRAGMA_(clang attribute push(__attribute__((target(features))), apply_to = function))
#define LS_TARGET_END LS_PRAGMA_(clang attribute pop)
#else
#define LS_TARGET_BEGIN(features) LS_PRAGMA_(GCC push_options) LS_PRAGMA_(GCC target(features))
#define LS_TARGET_END LS_PRAGMA_(GCC pop_options)
#endif
